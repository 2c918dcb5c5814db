// The fine-grained loss on CUDA, pair path: instances.
#include "fine_grained/fine_grained_pair_gradients.cuh"
#include "pairs/pair_launch.cuh"

template struct sparc::PairPath<sparc::FineGrainedArguments>;
