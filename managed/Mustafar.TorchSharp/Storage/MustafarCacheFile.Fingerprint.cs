using System.Security.Cryptography;
using System.Text;
using Mustafar.Native;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar;

// Identifying a model.
public static partial class MustafarCacheFile
{
    private const int SampledElements = 1024;

    /// <summary>Identifies a model by its weights: equal for the same weights on any device, different for others.</summary>
    /// <param name="model">The model.</param>
    /// <returns>The SHA-256, in hexadecimal, of the names, dtypes and shapes of all parameters and buffers, and of up to 1024 evenly spread
    /// numbers of each. That takes milliseconds for a model of any size. A change that misses all of these numbers, such as one weight set
    /// by hand, is not detected.</returns>
    /// <exception cref="ArgumentNullException"><paramref name="model"/> is null.</exception>
    /// <exception cref="ArgumentException">The model has neither parameters nor buffers.</exception>
    /// <example>
    /// <code>
    /// string fingerprint = MustafarCacheFile.FingerprintOf(model);
    /// MustafarCacheFile.Save(path, layers, fingerprint);
    /// </code>
    /// </example>
    public static string FingerprintOf(nn.Module model)
    {
        ArgumentNullException.ThrowIfNull(model);
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        using IDisposable noGrad = no_grad();
        bool isEmpty = true;
        foreach ((string name, Tensor tensor) in model.state_dict().OrderBy(item => item.Key, StringComparer.Ordinal))
        {
            using DisposeScope scope = NewDisposeScope();
            isEmpty = false;
            hash.AppendData(Encoding.UTF8.GetBytes($"{name} {tensor.dtype} [{string.Join(", ", tensor.shape)}]\n"));
            long count = Math.Min(SampledElements, tensor.numel());
            long[] places = new long[count];
            for (long i = 0; i < count; i++)
            {
                places[i] = count == 1 ? 0 : (long)((Int128)i * (tensor.numel() - 1) / (count - 1));
            }

            Tensor sample = tensor.detach().contiguous().view(-1).index_select(0, torch.tensor(places, device: tensor.device)).cpu();
            AppendNumbers(hash, sample);
        }

        return isEmpty
            ? throw new ArgumentException("Expected a model with parameters or buffers, but it has none.", nameof(model))
            : Convert.ToHexString(hash.GetHashAndReset());
    }

    private static unsafe void AppendNumbers(IncrementalHash hash, Tensor numbers)
    {
        hash.AppendData(new ReadOnlySpan<byte>(TensorAccess.Pointer(numbers), checked((int)(numbers.numel() * numbers.ElementSize))));
        GC.KeepAlive(numbers);
    }
}
