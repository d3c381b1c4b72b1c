"""Forebay beside its peers: what `scripts/bench-side-by-side` runs.

    plan      which cells are measured, in which order, and how long that takes: pure
    records   the file of results, and what of it is done already
    lab       the place: CPUs, memory limits, processes, the store, the generator
    left      what a killed run left behind
    install   what has to be there before anything starts
    systems, peers    how each is started, and what it cannot do
    rounds    runs a plan's cells, system by system, each checked
    targets   the experiments of the table of targets; judge turns runs into verdicts: pure
    checks    one row with generators that are not ours
    main      the command line
"""
