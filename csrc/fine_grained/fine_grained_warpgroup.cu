// The fine-grained loss on CUDA, pair path by products of warpgroups: instances.
#include "fine_grained/fine_grained_warpgroup_backward.cuh"
#include "pairs/warpgroup_launch.cuh"

template struct sparc::WarpgroupPath<sparc::FineGrainedArguments>;
