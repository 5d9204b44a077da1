"""--metrics: counts of the program's work, for Prometheus and other clients that ask for /metrics.

    metrics.py     the option as a whole, for the program
    meter.py       counts the requests of each ring
    collector.py   turns the counts into Prometheus' metrics, for each scrape
    http.py        turns a request's head into a response
    exporter.py    the connections of clients
    address.py     the address of the endpoint

The library prometheus-client only writes the text. Only metrics.py and collector.py load it. Everything runs
in the program's own event loop.
"""
