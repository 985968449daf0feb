"""The report of a run: one HTML page from the files of its workdir.

The page is written to a file that needs no network, or served while the run trains.
"""
