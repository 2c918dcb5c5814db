// The fine-grained loss on CUDA, tiled path: instances.
#include "fine_grained/fine_grained_tiled_kernel.cuh"
#include "pairs/pair_launch.cuh"

template struct sparc::TiledPath<sparc::FineGrainedArguments>;
