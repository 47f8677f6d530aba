"""What an episode earned, from the policy's own words."""
