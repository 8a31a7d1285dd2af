#include "lanes/avx512.h"
#include "rows.inl"
#include "attention.inl"
#include "cache.inl"
#include "table.inl"

const rt::RowKernels* rt::rows_avx512() { return table("avx512"); }
