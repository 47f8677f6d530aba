"""Letters for array axes, used in every name that carries a shape (`logits_BTV`).

B  rows of a batch                 H  query heads
T  tokens along a row              K  key/value heads
V  vocabulary                      C  channels of one head
D  width of the residual stream    F  width of the feed-forward layer
L  layers                          S  engine slots (requests decoding together)
N  questions (groups)              P  pages of the key/value pool
G  siblings of one question        W  tokens in one page
X  pages in one slot's table       Q  new tokens fed in one engine step
"""
