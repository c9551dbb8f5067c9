#i "nuget: %FEED%"
#r "nuget: Mustafar.TorchSharp.Cpu, %VERSION%"
#r "nuget: libtorch-cpu-linux-x64, 2.10.0"

open Mustafar
open TorchSharp

let noGrad = torch.no_grad ()
let options = MustafarOptions(KeySparsity = 0.5, ValueSparsity = 0.7)
let shape = KeyValueShape(NumKvHeads = 2, HeadDim = 64)
let cache = new MustafarCache(1, shape, torch.ScalarType.Float32, torch.CPU, options)
let random (heads: int64) (tokens: int64) = torch.randn [| 1L; heads; tokens; 64L |]
cache.Forward(random 4L 300L, random 2L 300L, random 2L 300L) |> ignore
cache.Forward(random 4L 1L, random 2L 1L, random 2L 1L) |> ignore
printfn "%d tokens in %d bytes" cache.Length cache.Memory.TotalBytes
