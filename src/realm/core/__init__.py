"""The nouns that cross seams, configuration, errors. Imports nothing of Realm, and never torch."""
