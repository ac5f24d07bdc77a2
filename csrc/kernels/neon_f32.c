#include "types/f32.h"

#include "tiers/neon.h"

#include "table.h"
