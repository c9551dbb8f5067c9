using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>
/// The caches of a conversation: one for all layers of the model, as long as they have keys of one shape and take part in each step
/// together.
/// </summary>
/// <remarks>
/// Models report neither which layers take part in a step nor that one failed between two of them. So a step is open until its last layer
/// has attended, and the next call decides about an open step. If a layer that has attended begins at the same token again, the step
/// is undone. If it continues after it, the model skips the other layers, which are then split off.
/// </remarks>
internal sealed class ConversationCaches(LayerPartition partition, AttentionMask mask, MustafarOptions options)
{
    private readonly List<LayerGroup> _groups = [];

    /// <summary>The groups of layers that share a cache.</summary>
    internal IReadOnlyList<LayerGroup> Groups => _groups;

    /// <summary>Their memory. Any thread may read it.</summary>
    internal KeyValueCacheMemory Memory
    {
        get
        {
            lock (_groups)
            {
                return KeyValueCacheMemory.Sum(_groups.Select(group => group.Memory));
            }
        }
    }

    /// <summary>The open step of a layer's group; null if there is none.</summary>
    internal CacheStep? OpenStep(AttentionLayer layer) => Find(layer)?.Step;

    /// <summary>Whether a layer has attended in an open step.</summary>
    internal bool HasAttended(AttentionLayer layer) => Find(layer)?.HasAttended(layer) == true;

    /// <summary>Undoes the open step of a layer's group.</summary>
    internal void Undo(AttentionLayer layer) => Find(layer)?.Undo();

    /// <summary>Adds a layer's new tokens and attends from them.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="part">The model's count of its tokens.</param>
    /// <param name="known">What has been read from masks in this step of the model.</param>
    /// <param name="step">The tokens.</param>
    /// <returns>Attention [batch, num_heads, n, head_dim]; zero at padding.</returns>
    internal Tensor Attend(AttentionLayer layer, ConversationLayer part, ConversationStep known, AttentionStep step)
    {
        if (step.Start == 0)
        {
            partition.Note(layer, KeyShape.Of(step.Keys));
        }

        LayerGroup? group = Find(layer);
        if (group?.Step is not null)
        {
            if (group.Awaits(layer, step, Padding(group)))
            {
                return group.Attend(layer, part, step);
            }

            group = Leave(group, layer, step);
        }

        int[] padding = Padding(group);
        group = step.Start == 0 ? Restart(group, layer, step) : Continue(group, layer, step);
        group.Begin(step.Start, checked((int)step.Query.size(2)), padding);
        return group.Attend(layer, part, step);

        int[] Padding(LayerGroup? of) => mask.Read(known, step, step.Start, step.Start > 0 && of is not null ? of.Padding : new int[step.Query.size(0)]);
    }

    /// <summary>Frees them.</summary>
    internal void Free()
    {
        lock (_groups)
        {
            _groups.ForEach(group => group.Dispose());
            _groups.Clear();
        }
    }

    // Ends an open step if a call shows that it is over; returns the layer's group then, null if it has no tokens.
    private LayerGroup? Leave(LayerGroup group, AttentionLayer layer, AttentionStep step)
    {
        if (group.HasAttended(layer) && step.Start <= group.Start)
        {
            group.Undo();
            return group;
        }

        bool isOfOtherShape = step.Start == 0 && !group.HasAttended(layer);
        (LayerGroup attended, LayerGroup? others) = group.Part();
        if (!isOfOtherShape)
        {
            partition.Separate(attended.Layers);
        }

        Replace(group, attended, others);
        return attended.Has(layer) ? attended : others;
    }

    // Begins with an empty cache. What the conversation held before is freed first.
    private LayerGroup Restart(LayerGroup? group, AttentionLayer layer, AttentionStep step)
    {
        Replace(group);
        AttentionLayer[] layers = partition.With(layer);
        LayerGroup begun = new(Array.FindAll(layers, other => Find(other) is null), step.Keys, options);
        Replace(null, begun);
        return begun;
    }

    // Moves the layer's group to the step's start.
    private LayerGroup Continue(LayerGroup? group, AttentionLayer layer, AttentionStep step)
    {
        if (group is null or { Length: 0 } && step.Past is (Tensor keys, Tensor values))
        {
            if (keys.isnan().all().item<bool>())
            {
                throw new InvalidOperationException(
                    $"The model's cache has NaN in place of {step.Start} tokens: it is a copy of a conversation whose tokens are stored " +
                    "compressed, which a copy does not include. Start with a new cache and the whole prompt.");
            }

            // This layer only: what the model cached of the other layers comes with their calls.
            LayerGroup taken = new([layer], step.Keys, options);
            Replace(group, taken);
            taken.TakeOver(keys, values);
            group = taken;
        }

        if (group is null || step.Start > group.Length)
        {
            throw new InvalidOperationException(
                $"The call continues a conversation at token {step.Start}, but {group?.Length ?? 0} tokens of it are cached: " +
                "it began before attention was replaced, or its caches were released.");
        }

        if (step.Query.size(0) != group.BatchSize)
        {
            throw new ArgumentException(
                $"Expected {group.BatchSize} sequences, as at the start of the conversation, but got {step.Query.size(0)}.");
        }

        if (step.Start < group.Length)
        {
            group.Truncate(step.Start);
        }

        return group;
    }

    private LayerGroup? Find(AttentionLayer layer) => _groups.Find(group => group.Has(layer));

    private void Replace(LayerGroup? group, params ReadOnlySpan<LayerGroup?> by)
    {
        lock (_groups)
        {
            if (group is not null)
            {
                _groups.Remove(group);
                group.Dispose();
            }

            foreach (LayerGroup? other in by)
            {
                if (other is not null)
                {
                    _groups.Add(other);
                }
            }
        }
    }
}
