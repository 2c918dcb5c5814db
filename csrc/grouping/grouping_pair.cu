// Grouped embeddings and alignment weights on CUDA, pair path: instances.
#include "grouping/grouping_pair_kernel.cuh"
#include "pairs/pair_launch.cuh"

template struct sparc::PairPath<sparc::GroupingArguments>;
