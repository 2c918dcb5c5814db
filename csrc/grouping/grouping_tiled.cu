// Grouped embeddings and alignment weights on CUDA, tiled path: instances.
#include "grouping/grouping_tiled_kernel.cuh"
#include "pairs/pair_launch.cuh"

template struct sparc::TiledPath<sparc::GroupingArguments>;
