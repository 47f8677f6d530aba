"""Answers scored by hand, each under the definition that its name says.

em, f1, f1_bag: lower case, punctuation of ASCII and Unicode becomes a space, articles stay (DeepResearcher's scorer, arXiv
2504.03160); f1 is over sets of words, f1_bag over bags. squad_em, squad_f1: lower case, ASCII punctuation deleted, a, an and
the deleted, bags of words, 0 where no word is left (SQuAD v1.1, `evaluate-v1.1.py`). hotpot_f1: the same, and yes, no, noanswer
are right or wrong (`hotpot_evaluate_v1.py`). cover_em: the normalised accepted answer is a part of the normalised answer
(`subem_check` of Search-R1).
"""

CASES: list[tuple[str, str, list[str], float]] = [
    # The reference's goldens.
    ("f1", "Paris", ["Paris"], 1.0),
    ("f1", "the city of paris paris", ["Paris France"], 1 / 3),  # {the city of paris}, {paris france}: 2*1/(4+2)
    ("f1_bag", "the city of paris paris", ["Paris France"], 2 / 7),  # 5 words, 2 words, 1 shared
    ("f1", "Lyon", ["Marseille", "Lyon"], 1.0),
    # Exact match: case, punctuation, white space, articles.
    ("em", "PARIS", ["Paris"], 1.0),
    ("em", " Paris.\n", ["Paris"], 1.0),
    ("em", "The Beatles", ["Beatles"], 0.0),  # articles stay
    ("squad_em", "The Beatles", ["Beatles"], 1.0),
    ("squad_em", "an Apple a day", ["apple day"], 1.0),
    ("squad_em", "Theatre", ["atre"], 0.0),  # not an article
    ("squad_em", "another", ["other"], 0.0),
    ("em", "rock-and-roll", ["rock and roll"], 1.0),  # a hyphen is a space
    ("squad_em", "rock-and-roll", ["rock and roll"], 0.0),  # a hyphen is nothing: rockandroll
    ("squad_em", "rock-and-roll", ["rockandroll"], 1.0),
    ("em", "Paris  Texas", ["paris, texas"], 1.0),
    ("em", "Paris", ["London", "Rome"], 0.0),
    ("squad_em", "A", ["the"], 1.0),  # nothing is left of either
    ("squad_f1", "A", ["the"], 0.0),  # but no word is shared
    # Numbers.
    ("em", "1,000", ["1000"], 0.0),  # 1 000
    ("squad_em", "1,000", ["1000"], 1.0),
    ("squad_em", "$1,000", ["1000"], 1.0),
    ("em", "3.14", ["3 14"], 1.0),
    ("squad_em", "3.14", ["314"], 1.0),  # as the script has it
    ("f1", "42 km", ["42"], 2 / 3),
    ("squad_f1", "42 km", ["42"], 2 / 3),
    ("em", "seven", ["7"], 0.0),
    ("squad_em", "50%", ["50"], 1.0),
    ("f1", "-5", ["5"], 1.0),  # the sign is punctuation
    # Dates.
    ("em", "12 May 1931", ["May 12, 1931"], 0.0),
    ("f1", "12 May 1931", ["May 12, 1931"], 1.0),  # the same words
    ("squad_f1", "12 May 1931", ["May 12, 1931"], 1.0),
    ("f1", "1931", ["May 12, 1931"], 1 / 2),
    ("squad_f1", "in 1931", ["1931"], 2 / 3),
    ("em", "1931-05-12", ["1931 05 12"], 1.0),
    ("squad_em", "1931-05-12", ["19310512"], 1.0),
    ("cover_em", "It was on May 12, 1931.", ["May 12 1931"], 1.0),
    ("cover_em", "It was on 12 May 1931.", ["May 12, 1931"], 0.0),
    # Unicode.
    ("em", "“Paris”", ["Paris"], 1.0),  # typographic quotes are punctuation
    ("squad_em", "“Paris”", ["Paris"], 0.0),  # not to the script, which knows ASCII's
    ("em", "ÉCOLE", ["école"], 1.0),
    ("em", "ecole", ["école"], 0.0),  # accents stay
    ("squad_em", "São Paulo", ["são paulo"], 1.0),
    ("em", "東京", ["東京"], 1.0),
    ("f1", "東京都", ["東京"], 0.0),  # one word each
    ("cover_em", "東京都", ["東京"], 1.0),
    ("em", "Jean–Luc", ["Jean Luc"], 1.0),  # an en dash
    ("squad_f1", "Jean–Luc Picard", ["Jean Luc Picard"], 2 / 5),  # jean–luc is one word: 2*1/(2+3)
    ("em", "Привет, мир!", ["привет мир"], 1.0),
    # Yes and no.
    ("em", "Yes.", ["yes"], 1.0),
    ("em", "yes it is", ["yes"], 0.0),
    ("squad_f1", "yes it is", ["yes"], 1 / 2),
    ("hotpot_f1", "yes it is", ["yes"], 0.0),  # the rule
    ("hotpot_f1", "yes", ["Yes!"], 1.0),
    ("hotpot_f1", "no", ["yes"], 0.0),
    ("hotpot_f1", "no", ["no way out"], 0.0),
    ("squad_f1", "no", ["no way out"], 1 / 2),
    ("hotpot_f1", "noanswer", ["no answer"], 0.0),
    ("hotpot_f1", "the United States", ["United States of America"], 2 / 3),  # 2*2/(2+4): no rule
    ("cover_em", "yes, it is", ["yes"], 1.0),
    ("cover_em", "north", ["no"], 1.0),  # as the script has it: characters, not words
    # Repeated words: sets and bags.
    ("f1", "New York New York", ["New York"], 1.0),
    ("f1_bag", "New York New York", ["New York"], 2 / 3),
    ("squad_f1", "New York New York", ["New York"], 2 / 3),
    ("f1", "New York City", ["New York"], 4 / 5),
    ("squad_f1", "the New York", ["New York City"], 4 / 5),
    ("f1", "the New York", ["New York City"], 2 / 3),  # the article is a word: 2*2/(3+3)
    ("squad_f1", "Obama", ["Barack Hussein Obama", "Barack Obama"], 2 / 3),  # the best of them
    # Covering.
    ("cover_em", "The capital is Paris, in France", ["Paris"], 1.0),
    ("cover_em", "The capital is in France", ["Paris"], 0.0),
    ("cover_em", "Paris", ["Paris, France"], 0.0),
    ("cover_em", "the Lord of the Rings", ["Lord of Rings"], 1.0),  # articles are gone from both
    ("cover_em", "maybe London", ["Rome", "London"], 1.0),
    # Empty.
    ("em", "", ["Paris"], 0.0),
    ("f1", "", ["Paris"], 0.0),
    ("squad_f1", "", ["Paris"], 0.0),
    ("cover_em", "", ["Paris"], 0.0),
    ("f1", "...", ["Paris"], 0.0),
    ("em", "?!", ["..."], 1.0),  # nothing is left of either
    ("f1", "?!", ["..."], 0.0),
    ("cover_em", "Paris", ["The"], 0.0),  # nothing is left to be covered; the published scripts say 1
    ("f1", "Paris", [], 0.0),
]
