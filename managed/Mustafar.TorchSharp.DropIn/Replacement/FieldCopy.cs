using System.Reflection;

namespace Mustafar.DropIn;

/// <summary>Copies the instance fields of a class and all of its bases from one object to another, private and readonly ones too.</summary>
internal static class FieldCopy
{
    /// <summary>The instance fields of a type and its bases.</summary>
    internal static IEnumerable<FieldInfo> FieldsOf(Type type)
    {
        const BindingFlags declared = BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly;
        for (Type? level = type; level is not null && level != typeof(object); level = level.BaseType)
        {
            foreach (FieldInfo field in level.GetFields(declared))
            {
                yield return field;
            }
        }
    }

    /// <summary>Copies every field that <paramref name="type"/> and its bases declare.</summary>
    internal static void Copy(Type type, object source, object destination)
    {
        foreach (FieldInfo field in FieldsOf(type))
        {
            field.SetValue(destination, field.GetValue(source));
        }
    }
}
