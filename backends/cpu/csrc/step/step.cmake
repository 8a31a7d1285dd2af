# Thread pool, row operations, attention and programs; included by ../CMakeLists.txt after its variants.
target_sources(runtime_cpu PRIVATE
               step/api.cpp step/decode.cpp step/loader.cpp step/memory.cpp step/ops_attention.cpp step/ops_kv.cpp step/ops_linear.cpp
               step/ops_moe.cpp step/ops_rows.cpp step/ops_sampling.cpp step/pool.cpp step/program.cpp
               step/sampling.cpp step/variants/rows_base.cpp)
target_include_directories(runtime_cpu PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/step)
target_compile_options(runtime_cpu PRIVATE -fno-math-errno -fno-trapping-math)
# GCC 12 warns about its own headers: their undefined vectors are meant.
set(rows_options -Wno-maybe-uninitialized)
set_source_files_properties(step/variants/rows_base.cpp PROPERTIES COMPILE_OPTIONS "${rows_options}")
foreach(name avx2 avx512 avx512bf16 neon)
  string(TOUPPER ${name} upper)
  if(RT_COMPILES_${upper})
    target_sources(runtime_cpu PRIVATE step/variants/rows_${name}.cpp)
    set_source_files_properties(step/variants/rows_${name}.cpp PROPERTIES COMPILE_OPTIONS "${${name}};${rows_options}")
    set_property(SOURCE step/api.cpp APPEND PROPERTY COMPILE_DEFINITIONS RT_HAS_${upper})
  endif()
endforeach()
