namespace Mustafar;

/// <summary>What every emitted subclass of an attention class implements.</summary>
internal interface IReplacedAttention
{
    /// <summary>Where its calls go.</summary>
    AttentionLayer Layer { get; set; }

    /// <summary>Runs the forward of the class that it derives from.</summary>
    object? CallOriginal(object?[] arguments);
}
