#include "types/f32.h"

#include "tiers/avx2.h"

#include "table.h"
