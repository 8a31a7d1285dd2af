"""One run as JSON, JUnit XML, HTML, Markdown and text."""
