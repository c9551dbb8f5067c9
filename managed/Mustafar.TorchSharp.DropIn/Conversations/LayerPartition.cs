namespace Mustafar.DropIn;

/// <summary>
/// Which attention layers of a model are expected to take part in the same steps: all, until a step shows that some do not. Any
/// thread may use it.
/// </summary>
internal sealed class LayerPartition
{
    private readonly object _lock = new();
    private readonly List<Member> _members = [];
    private int _parts;

    /// <summary>Adds a layer, in the model's order.</summary>
    internal void Add(AttentionLayer layer) => _members.Add(new Member(layer));

    /// <summary>Records the keys of a layer.</summary>
    internal void Note(AttentionLayer layer, KeyShape shape)
    {
        lock (_lock)
        {
            Of(layer).Shape = shape;
        }
    }

    /// <summary>The layers that go together with one whose keys are known, including itself: those of other shapes do not.</summary>
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

    /// <summary>Records that some layers have done a step without the others.</summary>
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
