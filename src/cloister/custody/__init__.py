"""A party's own service: warrants today; keys, consents and high-water marks later."""
