/* The public headers from C: draws three uniforms on a pool of two threads. */
#include <dipengine/dipengine.h>
#include <dipengine/ops/adam.h>
#include <dipengine/ops/masked_mse.h>
#include <dipengine/ops/philox.h>
#include <stdio.h>

int main(void) {
  float out[3];
  dipengine_pool* pool = NULL;
  dipengine_philox_params params = {0};
  if (dipengine_abi_version() != DIPENGINE_ABI_VERSION) return 1;
  if (dipengine_pool_create(2, &pool) != DIPENGINE_OK) return 2;
  params.struct_size = sizeof(params);
  params.pool = pool;
  params.seed = 42;
  params.count = 3;
  params.out = out;
  if (dipengine_philox_uniform(&params) != DIPENGINE_OK) {
    fprintf(stderr, "%s\n", dipengine_last_error());
    return 3;
  }
  dipengine_pool_destroy(pool);
  printf("%.9g %.9g %.9g\n", out[0], out[1], out[2]);
  return 0;
}
