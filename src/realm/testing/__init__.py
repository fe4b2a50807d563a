"""For tests of Realm and of programs that use it: tiny models, an executor without weights, a clock set by hand."""
