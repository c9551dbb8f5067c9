namespace Mustafar.Examples.Llama.Commands;

/// <summary>What the attention layers read.</summary>
internal enum AttentionKind
{
    /// <summary>A pruned and compressed cache.</summary>
    Mustafar,

    /// <summary>A dense cache.</summary>
    Dense,
}
