using Mustafar.DropIn;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

/// <summary>What a user's model keeps of a conversation.</summary>
internal sealed class OwnCache
{
    internal Tensor? Keys { get; set; }

    internal Tensor? Values { get; set; }

    internal int Length { get; set; }
}

/// <summary>A user's attention, of a shape that no shipped adapter knows: values as arguments and as result, no rotary positions.</summary>
internal class OwnAttention : nn.Module<Tensor, OwnCache?, double, (Tensor Output, int Length)>
{
    private readonly Linear _qkv;
    private readonly Parameter _gain;
    private readonly Tensor _shift;

    internal OwnAttention(int heads)
        : base(nameof(OwnAttention))
    {
        Heads = heads;
        _qkv = nn.Linear(heads * Subject.HeadDim, 3 * heads * Subject.HeadDim);
        _gain = nn.Parameter(rand(heads * Subject.HeadDim) + 0.5);
        _shift = rand(heads * Subject.HeadDim);
        RegisterComponents();
    }

    internal int Heads { get; }

    public override (Tensor Output, int Length) forward(Tensor x, OwnCache? cache, double scale)
    {
        (Tensor query, Tensor keys, Tensor values) = Project(x);
        if (cache is not null)
        {
            cache.Keys = keys = cache.Keys is Tensor pastKeys ? cat([pastKeys, keys], 2) : keys;
            cache.Values = values = cache.Values is Tensor pastValues ? cat([pastValues, values], 2) : values;
            cache.Length += (int)x.shape[1];
        }

        long past = keys.shape[2] - query.shape[2];
        Tensor seen = ones(query.shape[2], keys.shape[2], dtype: ScalarType.Bool).tril(past);
        Tensor scores = (matmul(query, keys.transpose(2, 3)) * scale).masked_fill(seen.logical_not(), float.NegativeInfinity);
        Tensor output = matmul(nn.functional.softmax(scores, -1), values).transpose(1, 2).reshape(x.shape);
        return (output, cache?.Length ?? (int)x.shape[1]);
    }

    internal (Tensor Query, Tensor Keys, Tensor Values) Project(Tensor x)
    {
        Tensor[] all = _qkv.call((x * _gain) + _shift).view(x.shape[0], x.shape[1], 3 * Heads, Subject.HeadDim).transpose(1, 2).chunk(3, 1);
        return (all[0], all[1], all[2]);
    }
}

/// <summary>No class can be derived from it.</summary>
internal sealed class SealedAttention() : OwnAttention(heads: 2);

/// <summary>A class can be derived from it, but not with a forward of its own.</summary>
#pragma warning disable CA1852 // that it is not sealed is the point
internal class FinalAttention() : OwnAttention(heads: 2)
{
    public sealed override (Tensor Output, int Length) forward(Tensor x, OwnCache? cache, double scale) => base.forward(x, cache, scale);
}

/// <summary>How <see cref="OwnAttention"/> is read, by what the library offers to its users.</summary>
internal sealed class OwnAdapter : AttentionAdapter
{
    public override bool Matches(nn.Module candidate) => candidate is OwnAttention;

    // Null without a cache: the class's own forward runs.
    public override object? ConversationOf(nn.Module attention, IReadOnlyList<object?> arguments) => arguments[1];

    public override AttentionStep Read(nn.Module attention, IReadOnlyList<object?> arguments)
    {
        OwnCache cache = (OwnCache)arguments[1]!;
        Tensor x = (Tensor)arguments[0]!;
        (Tensor query, Tensor keys, Tensor values) = ((OwnAttention)attention).Project(x);
        return new AttentionStep
        {
            Query = query,
            Keys = keys,
            Values = values,
            Start = cache.Length,
            Mask = full([x.shape[1], cache.Length + x.shape[1]], float.NegativeInfinity).triu(cache.Length + 1),
            Scale = (double)arguments[2]!,
        };
    }

    public override object? Complete(nn.Module attention, IReadOnlyList<object?> arguments, AttentionResult result)
    {
        OwnCache cache = (OwnCache)arguments[1]!;
        cache.Length = result.Length;
        result.OnUndo(length => cache.Length = length);
        return (result.Output.MoveToOuterDisposeScope(), result.Length);
    }
}

/// <summary>Holds attention in all the ways that a model may.</summary>
internal sealed class OwnModel : nn.Module<Tensor, Tensor>
{
    internal OwnModel(Func<OwnAttention> make)
        : base(nameof(OwnModel))
    {
        single = make();
        Property = make();
        inArray = [make(), make()];
        byName = new Dictionary<string, nn.Module> { ["first"] = make() };
        list = [make()];
        dictionary.Add("second", make());
        last = nn.Linear(2, 2);
        RegisterComponents();
        register_module("array0", inArray[0]);
        register_module("array1", inArray[1]);
        register_module("named", byName["first"]);
    }

    internal readonly OwnAttention single;
    internal readonly OwnAttention[] inArray;
    internal readonly Dictionary<string, nn.Module> byName;
    internal readonly ModuleList<OwnAttention> list = [];
    internal readonly ModuleDict<OwnAttention> dictionary = new();
    internal readonly Linear last;

    internal OwnAttention Property { get; }

    internal OwnAttention[] All =>
        [single, Property, .. inArray, (OwnAttention)byName["first"], .. list, dictionary["second"]];

    public override Tensor forward(Tensor input) => throw new NotSupportedException();
}
