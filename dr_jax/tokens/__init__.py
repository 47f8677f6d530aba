"""Both seams between words and numbers: the policy that samples ids, and the trajectory that keeps them."""
