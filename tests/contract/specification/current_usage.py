from models.cmr_full_integrated import FullCMRModel

# After running a forward pass with return_memory_info=True
outputs = model.forward(input_ids, return_memory_info=True)
perf_stats = outputs.get('performance_stats', {})
