using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using static TorchSharp.torch;

namespace Mustafar;

/// <summary>
/// A model whose attention runs on compressed caches. Disposing it puts the model's own attention back.
/// </summary>
/// <remarks>
/// The compressed caches of a conversation are freed when the object that stands for it is collected, by <see cref="Release"/> or
/// <see cref="ReleaseAll"/>, or with this object. Conversations may run on several threads, each of them on one at a time, if the model
/// itself may: one that keeps the current cache in a field, as those of Microsoft.ML.GenAI do, serves one thread at a time. Attention
/// is replaced and put back only while no thread runs the model.
/// </remarks>
public sealed class MustafarAttachment : IDisposable
{
    private readonly nn.Module _model;
    private readonly Dictionary<nn.Module, nn.Module> _originals = new(ReferenceEqualityComparer.Instance);
    private readonly ConditionalWeakTable<object, Dictionary<AttentionLayer, ConversationLayer>> _conversations = new();

    [RequiresDynamicCode("Emits a subclass of the model's attention class.")]
    [RequiresUnreferencedCode("Reads the model's fields by reflection.")]
    internal MustafarAttachment(nn.Module model, MustafarOptions options, IReadOnlyList<AttentionAdapter> adapters)
    {
        ReplacementType.ThrowIfRuntimeEmitsNoCode();
        _model = model;
        Options = options;
        Mask = new AttentionMask(options.SlidingWindow);
        Dictionary<nn.Module, nn.Module> replacements = new(ReferenceEqualityComparer.Instance);
        foreach (nn.Module module in ModuleTree.All(model))
        {
            if (module is IReplacedAttention)
            {
                throw new InvalidOperationException("The model's attention is replaced already; dispose what replaced it first.");
            }

            AttentionAdapter? adapter = adapters.FirstOrDefault(one => one.Matches(module));
            if (adapter is null)
            {
                continue;
            }

            if (ReferenceEquals(module, model))
            {
                throw new ArgumentException(
                    $"{module.GetType()} is an attention module itself, which nothing holds where it could be replaced; give the model.",
                    nameof(model));
            }

            nn.Module replacement = ReplacementType.Replace(module, new AttentionLayer(module, adapter, this));
            replacements.Add(module, replacement);
            _originals.Add(replacement, module);
        }

        if (replacements.Count == 0)
        {
            throw new NotSupportedException(
                $"No registered module of {model.GetType()} is attention that one of the {adapters.Count} adapters reads; " +
                $"give an {nameof(AttentionAdapter)} for its class.");
        }

        try
        {
            ModuleTree.Exchange(model, replacements);
        }
        catch
        {
            ModuleTree.Exchange(model, _originals);
            throw;
        }
    }

    /// <summary>How keys and values are pruned and stored.</summary>
    public MustafarOptions Options { get; }

    /// <summary>Number of attention layers that were replaced.</summary>
    public int Layers => _originals.Count;

    /// <summary>What the compressed caches of all living conversations occupy.</summary>
    public KeyValueCacheMemory Memory
    {
        get
        {
            KeyValueCacheMemory sum = new(0, 0, 0, 0);
            foreach (Dictionary<AttentionLayer, ConversationLayer> conversation in Conversations())
            {
                lock (conversation)
                {
                    foreach (ConversationLayer layer in conversation.Values)
                    {
                        if (layer.Cache is MustafarCache cache)
                        {
                            KeyValueCacheMemory memory = cache.Memory;
                            sum = new KeyValueCacheMemory(
                                sum.CompressedBytes + memory.CompressedBytes,
                                sum.WindowBytes + memory.WindowBytes,
                                sum.DenseBytes + memory.DenseBytes,
                                sum.Fp16Bytes + memory.Fp16Bytes);
                        }
                    }
                }
            }

            return sum;
        }
    }

    internal bool IsDisposed { get; private set; }

    internal AttentionMask Mask { get; }

    /// <summary>Frees the compressed caches of one conversation. It cannot be continued, only begun anew.</summary>
    /// <param name="conversation">The object that stands for it, for most models their own cache; where each layer has a cache of its own
    /// (llm-sharp), one of them.</param>
    /// <returns>Whether it had caches here.</returns>
    public bool Release(object conversation)
    {
        ArgumentNullException.ThrowIfNull(conversation);
        if (!_conversations.TryGetValue(conversation, out Dictionary<AttentionLayer, ConversationLayer>? layers))
        {
            return false;
        }

        _conversations.Remove(conversation);
        Free(layers);
        return true;
    }

    /// <summary>Frees the compressed caches of all conversations. They cannot be continued, only begun anew.</summary>
    public void ReleaseAll()
    {
        Dictionary<AttentionLayer, ConversationLayer>[] all = Conversations();
        _conversations.Clear();
        foreach (Dictionary<AttentionLayer, ConversationLayer> layers in all)
        {
            Free(layers);
        }
    }

    /// <summary>
    /// Puts the model's own attention back, the same objects in the same places, and frees all caches. Conversations that are under
    /// way cannot be continued.
    /// </summary>
    [UnconditionalSuppressMessage("Trimming", "IL2026", Justification = "Who made this object was told.")]
    public void Dispose()
    {
        if (IsDisposed)
        {
            return;
        }

        IsDisposed = true;
        foreach ((nn.Module replacement, nn.Module original) in _originals)
        {
            // What was assigned to the attention's fields in the meantime stays.
            FieldCopy.Copy(original.GetType(), replacement, original);
        }

        ModuleTree.Exchange(_model, _originals);
        ReleaseAll();
    }

    internal ConversationLayer ConversationOf(object key, AttentionLayer layer)
    {
        Dictionary<AttentionLayer, ConversationLayer> layers = _conversations.GetOrCreateValue(key);
        lock (layers)
        {
            if (!layers.TryGetValue(layer, out ConversationLayer? conversation))
            {
                conversation = new ConversationLayer();
                layers.Add(layer, conversation);
            }

            return conversation;
        }
    }

    private static void Free(Dictionary<AttentionLayer, ConversationLayer> layers)
    {
        lock (layers)
        {
            foreach (ConversationLayer layer in layers.Values)
            {
                layer.Dispose();
            }
        }
    }

    private Dictionary<AttentionLayer, ConversationLayer>[] Conversations() => _conversations.Select(entry => entry.Value).ToArray();
}
