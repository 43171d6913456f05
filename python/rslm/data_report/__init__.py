"""What a run of the data pipeline did: a table, a page, and the way of one document.

It reads a run's folder, finished or not, and changes nothing there.
"""
