"""--metrics: what the program does, in numbers, for Prometheus or whoever else asks for /metrics.

    metrics.py     all of it in one, for the program
    meter.py       counts, while requests go by
    collector.py   puts the counts into Prometheus' terms when somebody asks
    http.py        a request's head in, the response out
    exporter.py    the connections of those who ask
    address.py     where they are met

Of the library only what writes the text is used, and it is loaded by metrics.py and collector.py alone. All
runs in the program's own event loop.
"""
