using System.Diagnostics.CodeAnalysis;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Adds compressed caches to existing TorchSharp models.</summary>
/// <remarks>Several threads may do so at once, each with its own model that no thread is running.</remarks>
/// <example>
/// <code>
/// model.eval();
/// using (MustafarAttachment attached = model.UseMustafar(new MustafarOptions { KeySparsity = 0.5, ValueSparsity = 0.7 }))
/// {
///     Generate(model); // as before
///     Console.WriteLine($"{attached.Layers} layers, {attached.Memory}");
/// }
///
/// // The model's own attention is back.
/// </code>
/// </example>
public static class MustafarModuleExtensions
{
    private static readonly AttentionAdapter[] Shipped =
        [new GenAIAttentionAdapter(), new SelfAttentionAdapter(), new LlamaAttentionAdapter()];

    /// <summary>
    /// Replaces the attention of a model in place, so that it runs on pruned and compressed caches, until the result is disposed.
    /// </summary>
    /// <remarks>
    /// <para>
    /// Each attention module is replaced by an object of a subclass wherever the model holds it. Weights are shared. The state
    /// dictionary, the names and order of modules and parameters, <c>to</c>, <c>train</c> and <c>eval</c> are not affected.
    /// </para>
    /// <para>
    /// Supported without an adapter are <c>Attention</c> of Microsoft.ML.GenAI.Core (LLaMA, Mistral and Phi-3), <c>SelfAttention</c> of
    /// Torchsharp-llama and <c>LlamaAttention</c> of llm-sharp. It is for inference: no gradient flows through the caches.
    /// </para>
    /// </remarks>
    /// <param name="model">A model whose components are registered.</param>
    /// <param name="options">How keys and values are pruned and stored; the defaults if null. A sliding window is taken from the model's
    /// configuration if it has one.</param>
    /// <param name="adapters">Adapters for further attention classes; they are tried first.</param>
    /// <returns>An object that restores the model's own attention.</returns>
    /// <exception cref="ArgumentException">The model is itself an attention module, or its sliding window differs from that of the
    /// options.</exception>
    /// <exception cref="InvalidOperationException">The model's attention is already replaced.</exception>
    /// <exception cref="NotSupportedException">No adapter can read a module of the model, the attention's class is sealed, the model has
    /// several sliding windows, the options evict tokens, or the runtime cannot generate code (NativeAOT). The model is
    /// unchanged.</exception>
    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    public static MustafarAttachment UseMustafar(
        this nn.Module model, MustafarOptions? options = null, params AttentionAdapter[] adapters) =>
        model.UseMustafar(options, linearInWeightDType: false, adapters);

    /// <summary>
    /// Replaces the attention of a model in place, like <see cref="UseMustafar(nn.Module, MustafarOptions?, AttentionAdapter[])"/>, and
    /// optionally runs its linear layers in the data type of their weights.
    /// </summary>
    /// <param name="model">A model whose components are registered.</param>
    /// <param name="options">How keys and values are pruned and stored; the defaults if null.</param>
    /// <param name="linearInWeightDType">Whether the linear layers of Microsoft.ML.GenAI, which convert their weights to Float32 at every
    /// call, multiply in the data type of the weights instead. That is faster and rounds differently. Layers with quantised weights are not
    /// changed, nor are those of other packages, which do so anyway.</param>
    /// <param name="adapters">Adapters for further attention classes; they are tried first.</param>
    /// <returns>An object that restores the model's own attention and linear layers.</returns>
    /// <exception cref="ArgumentException">The model is itself an attention module, or its sliding window differs from that of the
    /// options.</exception>
    /// <exception cref="InvalidOperationException">The model's attention is already replaced.</exception>
    /// <exception cref="NotSupportedException">No adapter can read a module of the model, a class to replace is sealed, the model has
    /// several sliding windows, or the runtime cannot generate code (NativeAOT). The model is unchanged.</exception>
    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    public static MustafarAttachment UseMustafar(
        this nn.Module model, MustafarOptions? options, bool linearInWeightDType, params AttentionAdapter[] adapters)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(adapters);
        if (options?.Eviction is not null)
        {
            throw new NotSupportedException(
                $"{nameof(MustafarOptions)}.{nameof(MustafarOptions.Eviction)} is not supported in models that count cached tokens themselves.");
        }

        return new MustafarAttachment(model, options ?? new MustafarOptions(), linearInWeightDType, [.. adapters, .. Shipped]);
    }
}
