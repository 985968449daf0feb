"""A run as one page to look at: read from the files of its workdir, written as HTML that needs
no network, or served while it trains.
"""
