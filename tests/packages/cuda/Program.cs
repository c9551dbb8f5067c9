using System.Runtime.InteropServices;
using Mustafar;

// The CUDA library is found in its package; it loads without a GPU.
nint library = NativeLibrary.Load("mustafar_cuda", typeof(MustafarCache).Assembly, null);
Console.WriteLine($"CUDA library: {NativeLibrary.TryGetExport(library, "mustafar_cuda_backend", out _)}");
