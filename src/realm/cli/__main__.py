"""`python -m realm.cli`: the `realm` command of this interpreter."""

from realm.cli.main import main

main()
