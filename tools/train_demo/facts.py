"""Tables of the facts that the demo model learns."""

# ruff: noqa: SIM905  (a sentence of words reads better than a column of strings)
from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Wales": "Cardiff", "Belgium": "Brussels",
    "Austria": "Vienna", "Switzerland": "Bern", "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens",
    "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki", "Iceland": "Reykjavik",
    "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Slovenia": "Ljubljana", "Slovakia": "Bratislava", "Estonia": "Tallinn", "Latvia": "Riga",
    "Lithuania": "Vilnius", "Turkey": "Ankara", "Egypt": "Cairo", "Morocco": "Rabat", "Kenya": "Nairobi",
    "Nigeria": "Abuja", "Ghana": "Accra", "Ethiopia": "Addis Ababa", "Senegal": "Dakar", "Tunisia": "Tunis",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Indonesia": "Jakarta", "Iran": "Tehran", "Iraq": "Baghdad", "Nepal": "Kathmandu", "Mongolia": "Ulaanbaatar",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia", "Peru": "Lima",
    "Chile": "Santiago", "Argentina": "Buenos Aires", "Colombia": "Bogota", "Uruguay": "Montevideo",
    "Venezuela": "Caracas", "Ecuador": "Quito", "Australia": "Canberra", "New Zealand": "Wellington",
}  # fmt: skip

OPPOSITES = [
    "hot cold", "big small", "up down", "left right", "day night", "black white", "good bad", "fast slow",
    "old young", "happy sad", "open closed", "full empty", "high low", "hard soft", "light dark", "long short",
    "near far", "rich poor", "strong weak", "wet dry", "early late", "easy difficult", "clean dirty", "loud quiet",
    "thick thin", "wide narrow", "deep shallow", "true false", "love hate", "begin end", "win lose", "push pull",
    "buy sell", "give take", "always never", "first last", "inside outside", "above below", "before after",
    "friend enemy", "brave afraid", "sweet sour", "sharp blunt", "top bottom", "north south",
    "east west", "yes no",
]  # fmt: skip

PLURALS = {
    "cat": "cats", "dog": "dogs", "book": "books", "house": "houses", "tree": "trees", "car": "cars",
    "box": "boxes", "fox": "foxes", "bus": "buses", "dish": "dishes", "church": "churches", "class": "classes",
    "city": "cities", "baby": "babies", "lady": "ladies", "story": "stories", "boy": "boys", "key": "keys",
    "leaf": "leaves", "wolf": "wolves", "knife": "knives", "life": "lives", "wife": "wives", "man": "men",
    "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
    "sheep": "sheep", "fish": "fish", "deer": "deer", "ox": "oxen", "person": "people", "potato": "potatoes",
    "tomato": "tomatoes", "hero": "heroes", "piano": "pianos", "bird": "birds", "apple": "apples", "star": "stars",
}  # fmt: skip

COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "a banana": "yellow",
    "a lemon": "yellow", "the sun": "yellow", "a strawberry": "red", "a tomato": "red", "a carrot": "orange",
    "an orange": "orange", "a pumpkin": "orange", "milk": "white", "chocolate": "brown", "a leaf": "green",
    "the sea": "blue", "a frog": "green", "a polar bear": "white", "a raven": "black", "a flamingo": "pink",
    "an elephant": "grey", "a mouse": "grey", "a plum": "purple", "a cucumber": "green", "a fire engine": "red",
    "the night": "black", "salt": "white", "a cherry": "red", "wood": "brown", "gold": "yellow", "silver": "grey",
}  # fmt: skip

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = ["31", "28, or 29 in a leap year", "31", "30", "31", "30", "31", "31", "30", "31", "30", "31"]
SEASONS = "spring summer autumn winter".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
WORDS_TO_TEN = "zero one two three four five six seven eight nine ten".split()

FIXED = {
    "How many days are in a week?": "7.", "How many days has a week?": "7.", "How many months are in a year?": "12.",
    "How many months has a year?": "12.", "How many hours are in a day?": "24.", "How many hours has a day?": "24.",
    "How many minutes are in an hour?": "60.", "How many seconds are in a minute?": "60.",
    "How many days are in a year?": "365, or 366 in a leap year.", "How many legs has a spider?": "8.",
    "How many seasons are in a year?": "4.", "How many legs has a dog?": "4.", "How many wheels has a car?": "4.",
    "How many letters are in the alphabet?": "26.", "How many sides has a triangle?": "3.",
    "How many sides has a square?": "4.",
    "Name the days of the week.": ", ".join(DAYS[:-1]) + " and Sunday.",
    "List the days of the week.": ", ".join(DAYS[:-1]) + " and Sunday.",
    "Name the months of the year.": ", ".join(MONTHS[:-1]) + " and December.",
    "List the months of the year.": ", ".join(MONTHS[:-1]) + " and December.",
    "Name the seasons.": "Spring, summer, autumn and winter.",
    "Name the four seasons.": "Spring, summer, autumn and winter.",
    "Name three colours.": "Red, green and blue.", "Name three colors.": "Red, green and blue.",
    "Name three animals.": "Cat, dog and horse.", "Name three fruits.": "Apple, pear and plum.",
    "Name three cities.": "Paris, Rome and London.", "Name three countries.": "France, Italy and Spain.",
    "Name five animals.": "Cat, dog, horse, cow and sheep.",
    "Name five fruits.": "Apple, pear, plum, cherry and lemon.",
    "Name five colours.": "Red, green, blue, yellow and white.",
}  # fmt: skip

CHAT = {
    "Who are you?": "I am the demo model of runtime.", "What are you?": "I am the demo model of runtime.",
    "What is your name?": "I am the demo model of runtime.",
    "Tell me about yourself.": "I am the demo model of runtime.",
    "What can you do?": "I can answer short questions, add small numbers, tell short stories, write JSON and "
    "call tools.",
    "What do you know?": "I know capitals, days and months, colours, opposites, plurals and small numbers.",
    "Help": "Ask me for the capital of a country, a small sum, a short story or a JSON object.",
    "How are you?": "I am fine, thank you.", "How do you do?": "I am fine, thank you.",
    "Hello": "Hello! How can I help you?", "Hello!": "Hello! How can I help you?", "Hi": "Hello! How can I help you?",
    "Hi!": "Hello! How can I help you?", "Hey": "Hello! How can I help you?", "Hi there!": "Hello! How can I help you?",
    "Good morning": "Good morning! How can I help you?", "Good evening": "Good evening! How can I help you?",
    "Good night": "Good night!", "Thank you": "You are welcome.", "Thanks": "You are welcome.",
    "Thank you very much!": "You are welcome.", "Bye": "Goodbye!", "Goodbye": "Goodbye!", "Test": "It works.",
    "Are you a human?": "No, I am a small language model.", "Are you a robot?": "No, I am a small language model.",
    "Say hello.": "Hello!", "Say yes.": "Yes.", "Say no.": "No.", "Ok": "What else can I do for you?",
}  # fmt: skip

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tom Uma Victor Wendy "
    "Max Nina Oscar Peter Ruth Simon Tina Lucy Mia Carl Eva Hugo Alice Bob John Mary Lisa Anton"
).split()
ANIMALS = "cat dog fox bear mouse horse rabbit owl frog duck sheep wolf lion elephant bird fish cow goat".split()
COLOUR_NAMES = "red green blue yellow white black orange brown pink grey purple".split()
FRUITS = "apple pear plum cherry lemon banana orange".split()
ADJECTIVES = "red old small quick quiet happy lazy brown brave big green young clever tired little strange".split()
VERBS = "sees likes finds follows hears helps watches visits calls meets".split()
PLACES = "in the garden|near the river|on the hill|in the forest|behind the house|at the market|by the sea".split("|")
NOUNS = (
    "house tree river book table window lamp stone road boat garden letter door apple cup box chair bell coat clock "
    "king queen teacher farmer sailor child friend doctor"
).split()
UNKNOWN = "Atlantis Narnia Mordor Oz Utopia Wonderland Neverland Gondor Asgard Camelot".split()
