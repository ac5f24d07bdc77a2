#include "types/f32.h"

#include "tiers/avx512.h"

#include "table.h"
