"""What policies are composed of: geometry, scorers, budget rules, always-keep rules, sharing, assembly."""
