namespace Mustafar.DropIn;

/// <summary>
/// Which attention layers of a model are expected to go through their steps together: all, until a step shows that some do not. Safe
/// from any thread.
/// </summary>
internal sealed class LayerPartition
{
    private readonly object _lock = new();
    private readonly List<Member> _members = [];
    private int _parts;

    /// <summary>Adds a layer, in the order of the model's.</summary>
    internal void Add(AttentionLayer layer) => _members.Add(new Member(layer));

    /// <summary>Notes what keys a layer has.</summary>
    internal void Note(AttentionLayer layer, KeyShape shape)
    {
        lock (_lock)
        {
            Of(layer).Shape = shape;
        }
    }

    /// <summary>The layers that go with one of which the keys are known, itself among them: those of other shapes do not.</summary>
    internal AttentionLayer[] With(AttentionLayer layer)
    {
        lock (_lock)
        {
            Member member = Of(layer);
            return
            [
                .. _members.Where(one => one.Part == member.Part && (one.Shape is null || one.Shape == member.Shape)).Select(one => one.Layer),
            ];
        }
    }

    /// <summary>Notes that some layers have done a step without the others.</summary>
    internal void Separate(IReadOnlyCollection<AttentionLayer> layers)
    {
        lock (_lock)
        {
            _parts++;
            foreach (Member member in _members.Where(one => layers.Contains(one.Layer)))
            {
                member.Part = _parts;
            }
        }
    }

    private Member Of(AttentionLayer layer) => _members.Find(one => one.Layer == layer)!;

    private sealed class Member(AttentionLayer layer)
    {
        internal AttentionLayer Layer => layer;

        internal int Part { get; set; }

        internal KeyShape? Shape { get; set; }
    }
}
