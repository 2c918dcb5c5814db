// Grouped embeddings and alignment weights on CUDA, pair path by products of warpgroups: instances.
#include "grouping/grouping_warpgroup_kernel.cuh"
#include "pairs/warpgroup_launch.cuh"

template struct sparc::WarpgroupPath<sparc::GroupingArguments>;
