using System.Diagnostics.CodeAnalysis;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Puts compressed caches into existing TorchSharp models.</summary>
/// <remarks>Several threads may do so at once, each with a model of its own that no thread is running.</remarks>
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
    /// Each attention module is exchanged for an object of a subclass wherever the model holds it. Weights are shared; the state
    /// dictionary, the names and order of modules and parameters, <c>to</c>, <c>train</c> and <c>eval</c> stay as they were.
    /// </para>
    /// <para>
    /// Read without further ado are <c>Attention</c> of Microsoft.ML.GenAI.Core (LLaMA, Mistral and Phi-3), <c>SelfAttention</c> of
    /// Torchsharp-llama and <c>LlamaAttention</c> of llm-sharp. It is for inference: no gradient passes the caches.
    /// </para>
    /// </remarks>
    /// <param name="model">A model, its components registered.</param>
    /// <param name="options">How keys and values are pruned and stored; the defaults if null. A sliding window that the model's
    /// configuration has is taken from there.</param>
    /// <param name="adapters">How further attention classes are read; they are asked first.</param>
    /// <returns>What puts the model's own attention back.</returns>
    /// <exception cref="ArgumentException">The model is an attention module itself, or its sliding window another than that of the
    /// options.</exception>
    /// <exception cref="InvalidOperationException">The model's attention is replaced already.</exception>
    /// <exception cref="NotSupportedException">No adapter reads a module of the model, the attention's class is sealed, the model has
    /// several sliding windows, the options evict tokens, or the runtime emits no code (NativeAOT). The model is as it was.</exception>
    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    public static MustafarAttachment UseMustafar(
        this nn.Module model, MustafarOptions? options = null, params AttentionAdapter[] adapters) =>
        model.UseMustafar(options, linearInWeightDType: false, adapters);

    /// <summary>
    /// Replaces the attention of a model in place, as <see cref="UseMustafar(nn.Module, MustafarOptions?, AttentionAdapter[])"/> does, and
    /// may have its linear layers run in the data type of their weights, too.
    /// </summary>
    /// <param name="model">A model, its components registered.</param>
    /// <param name="options">How keys and values are pruned and stored; the defaults if null.</param>
    /// <param name="linearInWeightDType">Whether the linear layers of Microsoft.ML.GenAI, which convert their weights to Float32 at every
    /// call, multiply in the data type of the weights instead. That is faster and rounds differently. Layers with quantised weights stay
    /// as they are, and those of other packages, which do so anyway.</param>
    /// <param name="adapters">How further attention classes are read; they are asked first.</param>
    /// <returns>What puts the model's own attention and linear layers back.</returns>
    /// <exception cref="ArgumentException">The model is an attention module itself, or its sliding window another than that of the
    /// options.</exception>
    /// <exception cref="InvalidOperationException">The model's attention is replaced already.</exception>
    /// <exception cref="NotSupportedException">No adapter reads a module of the model, a class to replace is sealed, the model has several
    /// sliding windows, or the runtime emits no code (NativeAOT). The model is as it was.</exception>
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
