"""Words that are written on images."""

WORDS = tuple(
    """
    apple bread cloud dance eagle flame grape house island juice kettle lemon mountain night ocean
    paper queen river stone table uncle violin water yellow zebra bridge candle dream engine forest
    garden hammer insect jacket kitchen ladder market needle orange pencil quiet rocket summer
    ticket umbrella village window winter basket camera dollar energy finger guitar hotel mirror
    morning number office people radio school station street sugar train travel valley weather
    winner world yesterday coffee closed open sale exit stop welcome danger push pull
    """.split()  # noqa: SIM905
)
