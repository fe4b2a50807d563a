"""`python -m realm` is `realm`."""

from realm.cli.main import main

main()
