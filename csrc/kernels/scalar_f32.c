#include "types/f32.h"

#include "tiers/scalar.h"

#include "table.h"
