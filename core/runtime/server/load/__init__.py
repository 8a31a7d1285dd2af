"""Load on an OpenAI endpoint, and what its users then feel: `runtime bench serve`."""
