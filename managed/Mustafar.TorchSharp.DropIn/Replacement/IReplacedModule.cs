namespace Mustafar.DropIn;

/// <summary>What every emitted subclass of a module's class implements.</summary>
internal interface IReplacedModule
{
    /// <summary>Where its calls go.</summary>
    ModuleReplacement Replacement { get; set; }

    /// <summary>Runs the forward of the class that it derives from.</summary>
    object? CallOriginal(object?[] arguments);
}
