#include "lanes/avx2.h"
#include "rows.inl"
#include "attention.inl"
#include "cache.inl"
#include "table.inl"

const rt::RowKernels* rt::rows_avx2() { return table("avx2"); }
