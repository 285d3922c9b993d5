"""The nouns: what is wanted and what was found (`spec`), the graph, kquant's two layers, recipes, kernel arithmetic."""
