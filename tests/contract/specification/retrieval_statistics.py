retrieval_stats = {
    'total_retrievals': 200,                      # Total retrieval operations
    'avg_retrieval_time': 0.002,                  # Average retrieval time
    'cache_hits': 160,                            # Cache hit count
    'cache_hit_rate': 0.80,                       # Cache hit rate
    'retrieval_quality': 0.88                     # Retrieval quality score
}
