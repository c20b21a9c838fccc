"""What a run costs: work, time and money, by arithmetic."""
