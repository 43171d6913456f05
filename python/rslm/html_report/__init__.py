"""One self-contained HTML page from facts, tables, plots and texts.

It knows nothing of runs: `blocks` is what a page is made of, `page` makes it.
"""
