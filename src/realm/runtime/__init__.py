"""Models, their engines' threads, and the ways to ask them: what the server and Python programs build on."""
