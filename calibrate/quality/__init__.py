"""How far one clip is from another.

In come frames [T, H, W, 3] in [0, 1], of a clip and mostly of the stock clip beside it. Out come figures (proxies,
which every generation gets, and scores that a study asks for) and what floors make of them.
"""
